from results.checks import Claim, course, dip, end, noise, start
from results.grid import interaction, worlds
