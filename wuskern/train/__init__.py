"""The recipes behind ``wuskern train``: data, models, one training loop, results. Needs the extra ``train``."""
