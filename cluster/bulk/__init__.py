"""Bulk reranking on the workers of a Ray cluster."""
