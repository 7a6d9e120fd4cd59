"""What models may call: a calculator, a clock, pages of allowed hosts, and tools of MCP servers."""
