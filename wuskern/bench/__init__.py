"""What ``wuskern bench`` measures a layer of one's own shape with, and the benchmarks of the project measure all with: clocks,
ceilings, peers, and the rule by which a result is right."""
