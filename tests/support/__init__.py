"""What the tests stand on: a scripted HTTP server, a real MLflow server, environments, and needs."""
