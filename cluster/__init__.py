"""kwise on a Ray cluster: Ray Serve for the service, Ray Data for bulk. See docs/ray.md."""
