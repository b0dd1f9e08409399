"""Where keys and values lie: pages on the device and on the host, and copies between them."""
