"""The web over `jobs`: health checks and metrics; pages and an HTTP API are to come."""
