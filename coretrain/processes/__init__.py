"""Several processes of one run: world, rendezvous, heartbeat, layout."""
