-- lease_fields: the header fields of a lease: its token, its end, its holder and its length.
-- lease: "turn", or "compactor": the right to summarize the session.
local function lease_fields(lease)
  if lease == 'turn' then
    return 'turn_token', 'turn_until_us', 'turn_holder', 'turn_ms'
  end
  return 'compactor_token', 'compactor_until_us', 'compactor_holder', 'compactor_ms'
end
