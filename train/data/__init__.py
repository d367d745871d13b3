"""`kwise data`: convert preference data of other formats to rankings, check it and describe it.

    files/    open and read JSON Lines, JSON arrays and Parquet; write an output file
    formats/  one module per data set or tool, and the table of all formats
    rows/     what the formats share: the parts of a row, checked fields, transcripts
    convert/  `kwise data convert`
    stats/    `kwise data stats`

Everything works with the standard library, except Parquet files, which need pyarrow.
"""
