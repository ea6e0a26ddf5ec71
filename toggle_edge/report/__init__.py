"""Results for people and for programs: tables and JSON. Computes nothing that a stage should have computed."""
