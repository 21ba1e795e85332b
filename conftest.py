"""Every session of pytest here has the judge's options and settings: parity/plugin.py has them."""

pytest_plugins = ["parity.plugin"]
