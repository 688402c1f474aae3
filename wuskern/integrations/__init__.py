"""Callbacks for the trainers that people use, each in a module of its own, which imports its library: ``transformers``,
``lightning``. accelerate needs none but :func:`wuskern.integrations.accelerate.accumulate`."""
