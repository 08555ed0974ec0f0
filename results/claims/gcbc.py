from results.grid import ogbench_goals

BENCHMARK = ogbench_goals("gcbc")
