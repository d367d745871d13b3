"""The gRPC port: `kwise.v1.RewardService`, health and reflection, on top of `RewardService`."""
