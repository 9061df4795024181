//! The daemon of one machine: takes functions, runs each in a container, answers HTTP.
