"""``collcomp bench planning``: the simulator beside SimGrid, placed flows beside hashed ones, time to plan."""
