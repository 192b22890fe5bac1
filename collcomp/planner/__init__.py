"""Which way bytes should go: topologies, rings and trees over them, flows placed on links, and what it all costs."""
