//! Links the program with nothing but itself, at a fixed address: nobody is there to relocate it.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let arguments = [
        "-nostartfiles",
        "-nodefaultlibs",
        "-static",
        "-no-pie",
        // The compiler calls it for what is equal or not; rlibc has the one that orders, too.
        "-Wl,--defsym=bcmp=memcmp",
    ];
    for argument in arguments {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}
