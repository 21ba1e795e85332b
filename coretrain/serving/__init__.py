"""A run as a server: the endpoints of OpenAI, and a page to talk to it."""
