"""What the network is (torch)."""
