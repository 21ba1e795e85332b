"""One run, written down: frozen sections of fields, read from TOML and dotted overrides."""
