//! A function that is built with the image, so that the next ones find all else compiled.

use openruntimes::{Context, Response};

pub fn main(context: Context) -> Response {
    context.res.empty()
}
