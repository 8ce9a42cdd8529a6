"""What requests and tokens cost on a fleet."""
