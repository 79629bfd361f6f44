-- For the assembled scripts. Redis gives them these globals and lets them set none.
std = "lua51"
read_globals = {"redis", "KEYS", "ARGV"}
max_line_length = 100
unused_secondaries = false
-- A fragment may stand below the script's own names, and does not mean them.
ignore = {"431"}
