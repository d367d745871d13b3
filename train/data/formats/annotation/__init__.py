"""The exports of annotation tools."""
