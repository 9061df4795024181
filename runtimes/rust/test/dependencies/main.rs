//! Says what a crate says that the build fetches.

use openruntimes::{Context, Response};

pub fn main(context: Context) -> Response {
    context.res.text(hex::encode("six"), None, None)
}
