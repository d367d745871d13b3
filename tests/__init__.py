"""Tests of kwise, in folders that mirror the source. Helper modules lie beside this file."""
