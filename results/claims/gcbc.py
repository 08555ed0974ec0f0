from results.grid import OGBENCH_GOALS, ogbench

BENCHMARK = [ogbench("gcbc", d) for d in OGBENCH_GOALS]
