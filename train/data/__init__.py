"""Preference data in the formats that people have, made into rankings, checked and described: `kwise data`.

Standard library only; pyarrow is imported where a Parquet file is read.
"""
