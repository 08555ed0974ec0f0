from results.grid import benchmark

MEDIUM, REPLAY, MAZE = "hopper-medium-v0", "hopper-medium-replay-v0", "pointmaze-umaze"

BENCHMARK = [
    benchmark("bc", MEDIUM),
    benchmark("bc", REPLAY),
    benchmark("bc", MAZE, "--eval-episodes 20"),
    benchmark("bc", MEDIUM, "--top-fraction 0.1", "top10"),
    benchmark("bc", REPLAY, "--top-fraction 0.1", "top10"),
]
