"""Check callers and encrypt connections. SECURITY.md has the threat model."""
