"""Shaped links in the NAT laboratory: the published table, long and lossy paths, a shared bottleneck."""
