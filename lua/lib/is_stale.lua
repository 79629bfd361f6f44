-- is_stale: the caller expected another version ("" = any).
local function is_stale(if_version, version)
  return if_version ~= '' and tonumber(if_version) ~= version
end
