"""The Ray Serve deployments: an ingress that takes requests, and replicas that hold the models."""
