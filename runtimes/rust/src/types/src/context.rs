//! What a function is called with.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
};

use serde::Serialize;
use serde_json::Value;

use crate::{ContextRequest, ContextResponse};

/// Takes what a function logs; the server has one for each execution.
pub trait Logger: Send + Sync {
    /// Writes one record.
    fn log(&self, text: &str);
    /// Writes one record to the error log.
    fn error(&self, text: &str);
}

/// One execution, as its function sees it.
#[derive(Clone)]
pub struct Context {
    pub req: ContextRequest,
    pub res: ContextResponse,
    logger: Arc<dyn Logger>,
}

impl Context {
    /// The context of one execution.
    pub fn new(req: ContextRequest, logger: Arc<dyn Logger>) -> Self {
        let res = ContextResponse::new();
        Self { req, res, logger }
    }

    /// Writes one record.
    pub fn log<T: LogMessage>(&self, message: T) {
        self.logger.log(&message.to_log_string());
    }

    /// Writes one record, the messages joined by spaces.
    pub fn log_multiple(&self, messages: Vec<String>) {
        self.logger.log(&messages.join(" "));
    }

    /// Writes one record to the error log.
    pub fn error<T: LogMessage>(&self, message: T) {
        self.logger.error(&message.to_log_string());
    }

    /// Writes one record to the error log, the messages joined by spaces.
    pub fn error_multiple(&self, messages: Vec<String>) {
        self.logger.error(&messages.join(" "));
    }
}

/// What can be logged: text and numbers as they are, collections as JSON.
pub trait LogMessage {
    fn to_log_string(&self) -> String;
}

macro_rules! log_as_text {
    ($($type:ty)*) => {$(
        impl LogMessage for $type {
            fn to_log_string(&self) -> String {
                self.to_string()
            }
        }
    )*};
}

log_as_text! {
    &str &&str String &String char bool fmt::Arguments<'_>
    i8 i16 i32 i64 i128 isize u8 u16 u32 u64 u128 usize f32 f64
}

impl LogMessage for Value {
    fn to_log_string(&self) -> String {
        match self {
            Self::String(text) => text.clone(),
            Self::Null | Self::Bool(_) | Self::Number(_) | Self::Array(_) | Self::Object(_) => {
                self.to_string()
            }
        }
    }
}

impl LogMessage for &Value {
    fn to_log_string(&self) -> String {
        (**self).to_log_string()
    }
}

macro_rules! log_as_json {
    ($($type:ident<$($parameter:ident),*>)*) => {$(
        impl<$($parameter: Serialize),*> LogMessage for $type<$($parameter),*> {
            fn to_log_string(&self) -> String {
                serde_json::to_string(self).unwrap_or_else(|error| error.to_string())
            }
        }
    )*};
}

log_as_json! { Vec<T> Option<T> HashMap<K, V> BTreeMap<K, V> }
