//! An announcement as bytes. The program of `shim/start` has this file too, and no standard library.

use alloc::vec::Vec;

pub(crate) const SERVICE: &str = "opr.shim.v1.Start";
pub(crate) const METHOD: &str = "Announce";

/// A request of ttrpc, with two fields of containerd's `CreateTaskRequest`.
///
/// ```text
/// length: u32   stream: u32   type: u8   flags: u8   body: length bytes, protobuf; numbers are big endian
/// ```
/// Source: `PROTOCOL.md` of containerd's ttrpc.
pub(crate) fn of(id: &str, bundle: &str) -> Vec<u8> {
    let create = [field(1, id.as_bytes()), field(2, bundle.as_bytes())].concat();
    let request = [
        field(1, SERVICE.as_bytes()),
        field(2, METHOD.as_bytes()),
        field(3, &create),
    ]
    .concat();
    // Names of paths are bounded by the kernel.
    let length = request.len() as u32;
    let mut frame = Vec::with_capacity(10 + request.len());
    frame.extend(length.to_be_bytes());
    frame.extend(1_u32.to_be_bytes());
    frame.extend([1, 0]);
    frame.extend(request);
    frame
}

/// Bytes in a message of protobuf.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    const LENGTH_DELIMITED: u8 = 2;
    let mut field = Vec::with_capacity(6 + bytes.len());
    field.push(number << 3 | LENGTH_DELIMITED);
    let mut length = bytes.len();
    while length >= 0x80 {
        field.push(length as u8 | 0x80);
        length >>= 7;
    }
    field.push(length as u8);
    field.extend(bytes);
    field
}
