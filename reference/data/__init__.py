"""Building a corpus: read, normalise, filter, score, deduplicate, decontaminate, mix, shard.

`n4090-kit data build SPEC.toml` runs it. The work is cut into parts that depend on the inputs
alone, never on the number of workers: a part's output is a function of the spec and its input, so
one worker, all cores and a Ray cluster give the same bytes, and a stopped build goes on at the last
finished part.

    spec      the TOML file, checked whole
    sources   inputs cut into parts, and a part read with clear errors
    part      one part: normalise, filter, score, hash        (parallel)
    index     duplicates and the mixture, over all parts      (DuckDB, memory bounded)
    shards    one output shard                                (parallel)
    build     the order of all this, and resuming it
"""
