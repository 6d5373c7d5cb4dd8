"""Image backbone: Hiera trunk and feature-pyramid neck."""
