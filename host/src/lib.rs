//! The daemon of one machine: takes functions, runs each in a container, answers HTTP.
//!
//! Calls go down: `cli` -> `serve` -> `api` -> `build` -> `function` -> `executor` -> `adapter` -> containerd.
//! `rootless` makes the namespaces in which `adapter` works where the node is not root.
//! `config`, `id`, `telemetry`, `sys` and `turns` serve all of them and call none.

pub mod adapter;
pub mod api;
pub mod build;
pub mod cli;
pub mod code;
pub mod config;
pub mod executor;
pub mod function;
pub mod id;
pub mod rootless;
pub mod serve;
pub mod storage;
pub mod sys;
pub mod telemetry;

mod turns;
