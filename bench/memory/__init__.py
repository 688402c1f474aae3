"""What forward keeps for backward and the peak of a process, where only biases train, and the time of layers that keep less.

    python -m bench.memory bytes [--torchvision FOLDER] [--memsave FOLDER]
    python -m bench.memory times [--rounds 41]

Both write their rows into bench/results/memory.json and leave the other's. ``networks`` has what is trained, ``step`` measures
one step in a process of its own, ``times`` the layers, ``tables`` renders.
"""
