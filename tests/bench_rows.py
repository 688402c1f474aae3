"""Rows of results, made up."""


def row(group, case, peer="frozen", variants=("ours", "frozen", "dense"), iqr=0.02, **derived):
    return {
        "group": group, "case": case, "peer": peer,
        "milliseconds": dict.fromkeys(variants, 1.5), "spread": dict.fromkeys(variants, 0.01),
        "derived": {name: {"median": value, "iqr": iqr} for name, value in derived.items()},
        "peak_bytes": dict.fromkeys(variants, 2**20), "bytes": 8, "flops": 8, "GB/s": 1.0, "GFLOP/s": 1.0, "of_ceiling": 0.5,
        "rounds": 21,
    }  # fmt: skip


def rowsparse_rows():
    """Of each group about row-sparse layers; among them one that misses every aim, and one that costs more than dense."""

    def layer(group, use, dtype, ratio, faster, over_dense, of_ideal, least=1):
        over = dict(over_dense=over_dense, over_frozen=2.0, over_compiled=1.5)
        found = row(group, f"{use} {dtype} {ratio:.0%}", "plain", ("ours", "plain"), faster=faster, **over, of_ideal=of_ideal,
                    compact_of_ideal=of_ideal - 0.1)  # fmt: skip
        return found | {"use": use, "dtype_name": dtype, "ratio": ratio, "least_over_dense": least}

    def cost(ratio, faster, ideal):
        found = row("rowsparse cost", f"VGG {ratio:.0%}", "dense", ("ours", "dense"), faster=faster, ideal_of_dense=ideal)
        return found | {"use": "VGG", "ratio": ratio}

    return [
        layer("rowsparse linear", "512", "float32", 0.05, 1.1, 4.0, 1.5, least=5),
        layer("rowsparse linear", "1024", "float32", 0.05, 4.4, 6.0, 1.2, least=5),
        layer("rowsparse linear", "512", "float32", 0.2, 1.35, 1.1, 1.25),
        layer("rowsparse conv2d", "VGG", "bfloat16", 0.2, 1.34, 0.9, 1.0),
        layer("rowsparse conv2d", "stem", "bfloat16", 0.2, 3.0, 2.0, 1.0),
        cost(0.2, 2.0, 0.3), cost(0.8, 0.5, 0.9),
    ]  # fmt: skip
