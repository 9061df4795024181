//! The daemon of one machine: takes functions, runs each in a container, answers HTTP.
//!
//! Calls go down: `cli`, `api` -> `function`, `build` -> `executor` -> `adapter` -> containerd.
//! `config`, `id`, `telemetry`, `drain` and `sys` serve all of them and call none.

pub mod adapter;
pub mod build;
pub mod config;
pub mod executor;
pub mod function;
pub mod id;
pub mod storage;
pub mod sys;
pub mod telemetry;
