//! The HTTP request as the function sees it: path and query raw, header names lower-cased.

use std::collections::HashMap;

use openruntimes::ContextRequest;

use crate::{http::Message, settings::Settings};

pub(crate) const CONTROL: &str = "x-open-runtimes-";

pub(crate) fn new_request(message: &Message, body: Vec<u8>, settings: &Settings) -> ContextRequest {
    let forwarded = message.headers.get("x-forwarded-proto");
    let scheme = forwarded.map_or("http", String::as_str).to_owned();
    let default_port = if scheme == "https" { 443 } else { 80 };
    let (host, port) = authority(message.header("host"), default_port);
    let target = origin_form(&message.target);
    let (path, query_string) = target.split_once('?').unwrap_or((&target, ""));
    let mut url = format!("{scheme}://{host}");
    if port != default_port {
        url.push_str(&format!(":{port}"));
    }
    url.push_str(path);
    if !query_string.is_empty() {
        url.extend(["?", query_string]);
    }
    let mut request = ContextRequest::new();
    request.headers = function_headers(message, settings);
    request.method = message.method.to_ascii_uppercase();
    request.url = url;
    request.scheme = scheme;
    request.host = host;
    request.port = port;
    request.path = path.to_owned();
    request.query_string = query_string.to_owned();
    request.query = parse_query(query_string);
    request.set_body_binary(body);
    request
}

/// `/path?query` also where a proxy sent the absolute form.
fn origin_form(target: &str) -> String {
    match target.split_once("://") {
        Some((_, rest)) if !target.starts_with('/') => {
            let path = rest.split_once('/').map_or("", |(_, path)| path);
            format!("/{path}")
        }
        _ => target.to_owned(),
    }
}

fn authority(header: &str, default_port: u16) -> (String, u16) {
    let bracket = header.find(']').filter(|_| header.starts_with('['));
    let (address, rest) = header.split_at(bracket.unwrap_or(0));
    let (host, port) = rest.split_once(':').unwrap_or((rest, ""));
    (
        format!("{address}{host}"),
        port.parse().unwrap_or(default_port),
    )
}

/// Raw text, split at `&` and at the first `=`; the last of equal keys wins.
fn parse_query(text: &str) -> HashMap<String, String> {
    let items = text
        .split('&')
        .map(|item| item.split_once('=').unwrap_or((item, "")));
    let items = items.filter(|(key, _)| !key.is_empty());
    items
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// Leaves out the runtime's own headers and the caller's own credential; the enforced ones win.
fn function_headers(message: &Message, settings: &Settings) -> HashMap<String, String> {
    let mut headers = message.headers.clone();
    headers.retain(|name, _| !name.starts_with(CONTROL) && name != "authorization");
    let mut credentials = message.authorizations.iter();
    if let Some(client) = credentials.find(|credential| **credential != settings.own_credential) {
        headers.insert("authorization".to_owned(), client.clone());
    }
    headers.extend(settings.enforced_headers.clone());
    headers
}
