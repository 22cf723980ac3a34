"""The command line: what it reads, prints and builds, and the folder that a run is kept in."""
