"""The web over `jobs`: pages, an HTTP API, sequences as pictures, health checks and metrics."""
