"""The build lifecycle's scripts that need no container: package cache, manifest, archives, messages."""

import json
import os
import re
import shutil
import stat
import subprocess
import tempfile
import unittest

HELPERS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "helpers")
# What the scripts call; a test that wants a tool to be missing or to fail gives its own.
TOOLS = ("bash basename cat cmp cp cut dirname du find grep gzip ln mkdir mktemp mv od rm sha256sum sleep sort stat tar "
         "timeout touch tr zstd").split()
PACK = "printf packed > \"$2\""
UNPACK = "while [ $# -gt 1 ]; do [ \"$1\" = -dest ] && dest=$2; shift; done; printf x > \"$dest/restored\""


class HelperTest(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="helpers-")
        self.addCleanup(shutil.rmtree, self.dir)
        self.bin = f"{self.dir}/bin"
        os.mkdir(self.bin)
        for tool in TOOLS:
            found = shutil.which(tool)
            if found:
                os.symlink(found, f"{self.bin}/{tool}")
        self.root = f"{self.dir}/root"
        self.artifact = f"{self.dir}/cache/stores.sqfs"

    def tool(self, name, script):
        path = f"{self.bin}/{name}"
        if os.path.lexists(path):
            os.unlink(path)
        self.write(path, f"#!{shutil.which('bash')}\n{script}\n")
        os.chmod(path, stat.S_IRWXU)

    def write(self, path, text="x"):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)

    def read(self, path):
        with open(path) as file:
            return file.read()

    def run_script(self, *command, cwd=None, **env):
        """Output without colours; every line of it is the lifecycle's."""
        done = subprocess.run(
            ["bash", *command],
            cwd=cwd or self.dir,
            env={"PATH": self.bin, "OPEN_RUNTIMES_BUILD_CACHE_ROOT": self.root,
                 "OPEN_RUNTIMES_BUILD_CACHE_ARTIFACT": self.artifact, **env},
            capture_output=True,
            text=True,
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        text = re.sub("\x1b\\[[0-9;]*m", "", done.stdout)
        for line in text.splitlines():
            self.assertRegex(line, r"^\[\d\d:\d\d:\d\d\] \[open-runtimes\] ")
        return text

    def assert_clean(self):
        left = os.listdir(os.path.dirname(self.artifact))
        self.assertEqual([name for name in left if name != "stores.sqfs"], [])


class NetworkTest(HelperTest):
    """What package managers are told of the network."""

    def told(self, *before):
        script = (f"source {HELPERS}/lifecycle/lib.sh; source {HELPERS}/build-cache-env.sh; "
                  "echo ${npm_config_offline:-} ${GOPROXY:-} ${PIP_RETRIES:-}")
        done = subprocess.run([*before, "bash", "-c", script], env={"PATH": os.environ["PATH"]},
                              capture_output=True, text=True)
        if before and done.returncode != 0:
            self.skipTest(done.stderr)
        return done.stdout.split()

    @unittest.skipIf(len(open("/proc/net/route").readlines()) < 2, "this machine has no network")
    def test_nothing_where_there_is_one(self):
        self.assertEqual(self.told(), [])

    def test_that_there_is_none(self):
        self.assertEqual(self.told("unshare", "--map-root-user", "--net"), ["true", "off", "0"])


class ShareTest(HelperTest):
    def share(self, source, target):
        self.run_script("-c", f"source {HELPERS}/lifecycle/lib.sh; share {source} {target}")

    def test_adds_files_as_links(self):
        self.write(f"{self.dir}/from/a/new")
        self.write(f"{self.dir}/from/a/both", "theirs")
        self.write(f"{self.dir}/to/a/both", "ours")
        self.write(f"{self.dir}/to/own")
        self.share(f"{self.dir}/from", f"{self.dir}/to")
        self.assertTrue(os.path.samefile(f"{self.dir}/from/a/new", f"{self.dir}/to/a/new"))
        self.assertEqual(self.read(f"{self.dir}/to/a/both"), "theirs")
        self.assertTrue(os.path.exists(f"{self.dir}/to/own"))

    def test_copies_to_another_file_system(self):
        if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == os.stat(self.dir).st_dev:
            self.skipTest("there is no other file system")
        other = tempfile.mkdtemp(prefix="helpers-", dir="/dev/shm")
        self.addCleanup(shutil.rmtree, other)
        self.write(f"{self.dir}/from/a/new", "text")
        self.share(f"{self.dir}/from", f"{other}/to")
        self.assertEqual(self.read(f"{other}/to/a/new"), "text")

    def test_leaves_what_is_not_there(self):
        self.share(f"{self.dir}/absent", f"{self.dir}/to")
        self.assertFalse(os.path.exists(f"{self.dir}/to"))


class CacheTest(HelperTest):
    def save(self, **env):
        os.makedirs(self.root, exist_ok=True)
        return self.run_script(f"{HELPERS}/build-cache-save.sh", **env)

    def restore(self):
        return self.run_script(f"{HELPERS}/build-cache-restore.sh")

    def test_restores(self):
        self.assertIn("Build cache warning: missing unsquashfs, continuing without cache restore.", self.restore())
        self.tool("unsquashfs", UNPACK)
        self.assertIn("Build cache miss.", self.restore())
        self.write(self.artifact)
        self.assertIn("Build cache hit.", self.restore())
        self.assertTrue(os.path.exists(f"{self.root}/restored"))

    def test_starts_fresh_where_the_artifact_is_corrupt(self):
        self.tool("unsquashfs", f"{UNPACK}; echo noise; echo noise >&2; exit 1")
        self.write(self.artifact)
        text = self.restore()
        self.assertIn("Build cache warning: failed to restore cache, starting fresh.", text)
        self.assertNotIn("noise", text)
        self.assertEqual(os.listdir(self.root), [])

    def test_says_why_it_saves_nothing(self):
        missing = "Build cache warning: missing mksquashfs, continuing without cache save."
        self.assertIn(missing, self.save())
        self.tool("mksquashfs", PACK)
        os.rmdir(self.root)
        script = f"{HELPERS}/build-cache-save.sh"
        self.assertIn("Build cache save skipped: cache root missing.", self.run_script(script))
        self.write(f"{self.dir}/cache", "a file, no directory")
        self.assertIn("Build cache save skipped: artifact directory could not be created.", self.save())

    def test_saves_and_replaces(self):
        self.tool("mksquashfs", f"{PACK}; echo noise")
        text = self.save()
        self.assertIn("Build cache saved. (6 bytes)", text)
        self.assertNotIn("noise", text)
        self.assertIn("Build cache save skipped: artifact unchanged (6 bytes).", self.save())
        self.write(self.artifact, "old")
        self.assertIn("Build cache saved. (3 bytes -> 6 bytes)", self.save())
        self.assertEqual(self.read(self.artifact), "packed")
        self.assert_clean()

    def test_saves_to_a_relative_path(self):
        self.tool("mksquashfs", PACK)
        self.save(OPEN_RUNTIMES_BUILD_CACHE_ARTIFACT="relative.sqfs")
        self.assertEqual(self.read(f"{self.dir}/relative.sqfs"), "packed")

    def test_keeps_the_artifact_where_packing_fails(self):
        self.tool("mksquashfs", f"{PACK}; echo out; echo err >&2; exit 1")
        self.write(self.artifact, "old")
        text = self.save()
        self.assertIn("failed to save cache with exit code 1, build result preserved.", text)
        self.assertIn("Build cache mksquashfs output: out", text)
        self.assertIn("Build cache mksquashfs output: err", text)
        self.assertIn("Build cache warning: failed to save cache, build result preserved.", text)
        self.assertEqual(self.read(self.artifact), "old")
        self.assert_clean()

    def test_keeps_the_artifact_where_the_new_one_is_too_large(self):
        self.tool("mksquashfs", "printf 12345 > \"$2\"")
        self.write(self.artifact, "old")
        text = self.save(OPEN_RUNTIMES_BUILD_CACHE_MAX_SIZE_BYTES="3")
        self.assertIn("Build cache save skipped: artifact too large (5 bytes, max 3 bytes).", text)
        self.assertEqual(self.read(self.artifact), "old")
        self.assert_clean()

    def test_gives_up_where_time_is_up_or_the_move_fails(self):
        self.tool("mksquashfs", "sleep 5")
        text = self.save(OPEN_RUNTIMES_BUILD_CACHE_SAVE_TIMEOUT_SECONDS="0.1")
        self.assertIn("failed to save cache before timeout (0.1s), build result preserved.", text)
        self.tool("mksquashfs", PACK)
        self.tool("mv", "exit 1")
        self.assertIn("Build cache warning: failed to save cache, build result preserved.", self.save())
        self.assertEqual(os.listdir(f"{self.dir}/cache"), [])

    @unittest.skipUnless(shutil.which("mksquashfs"), "squashfs-tools are not installed")
    def test_goes_there_and_back_with_the_real_tools(self):
        for tool in ("mksquashfs", "unsquashfs"):
            os.symlink(shutil.which(tool), f"{self.bin}/{tool}")
        self.write(f"{self.root}/npm/entry", "kept")
        self.assertIn("Build cache saved.", self.save())
        shutil.rmtree(self.root)
        self.assertIn("Build cache hit.", self.restore())
        self.assertEqual(self.read(f"{self.root}/npm/entry"), "kept")
        self.assertIn("artifact unchanged", self.save())


class ManifestTest(HelperTest):
    def setUp(self):
        super().setUp()
        self.output = f"{self.dir}/output"
        os.mkdir(self.output)
        self.manifest = f"{self.dir}/out/manifest.json"

    def make(self, **env):
        env = {"OPEN_RUNTIMES_BUILD_MANIFEST": self.manifest, **env}
        return self.run_script(f"{HELPERS}/build-manifest.sh", cwd=self.output, **env)

    def files(self, path=None):
        manifest = json.loads(self.read(path or self.manifest))
        self.assertEqual(manifest["version"], 1)
        return manifest["files"]

    def test_writes_nothing_unless_asked(self):
        self.assertEqual(self.run_script(f"{HELPERS}/build-manifest.sh", cwd=self.output), "")

    def test_lists_files(self):
        for name in ("index.html", "server/entry.mjs", "node_modules/p/i.js", "a/node_modules/p/i.js", "code.tar.gz", "code.sqfs"):
            self.write(f"{self.output}/{name}")
        self.assertIn("Build manifest written. (2 files)", self.make())
        self.assertEqual(self.files(), ["index.html", "server/entry.mjs"])
        self.assertEqual(os.listdir(f"{self.dir}/out"), ["manifest.json"])

    def test_escapes_names(self):
        names = sorted(['q"q', "b\\b", "t\tt", "r\rr", "n\nn", "ü👋"])
        for name in names:
            self.write(f"{self.output}/{name}")
        self.make()
        self.assertEqual(sorted(self.files()), names)

    def test_does_not_list_itself(self):
        self.write(f"{self.output}/index.html")
        self.make(OPEN_RUNTIMES_BUILD_MANIFEST="manifest.json")
        self.assertEqual(self.files(f"{self.output}/manifest.json"), ["index.html"])

    def test_stops_at_the_limit_and_takes_none(self):
        self.assertIn("(0 files)", self.make())
        self.assertEqual(self.files(), [])
        for name in "abcde":
            self.write(f"{self.output}/{name}")
        self.assertIn("(2 files)", self.make(OPEN_RUNTIMES_BUILD_MANIFEST_MAX_FILES="2"))
        self.assertEqual(len(self.files()), 2)

    def test_says_why_there_is_none(self):
        self.write(f"{self.dir}/file")
        text = self.make(OPEN_RUNTIMES_BUILD_MANIFEST=f"{self.dir}/file/manifest.json")
        self.assertIn("Build manifest skipped: manifest directory could not be created.", text)
        self.tool("mv", "exit 1")
        self.assertIn("Build manifest warning: failed to write manifest, continuing without it.", self.make())


class ArchiveTest(HelperTest):
    SOURCE = "cd $0/..; source helpers/lifecycle/lib.sh; source helpers/lifecycle/compression.sh; source helpers/lifecycle/extract.sh; set -e; "

    def lifecycle(self, script, **env):
        return self.run_script("-c", self.SOURCE + script, HELPERS, **env)

    def setUp(self):
        super().setUp()
        self.tree = f"{self.dir}/tree"
        self.write(f"{self.tree}/a/b.txt", "text")
        self.write(f"{self.tree}/.hidden", "dot")
        self.write(f"{self.tree}/code.tar.gz", "an old archive")
        os.mkdir(f"{self.dir}/out")
        for tool in ("mksquashfs", "unsquashfs"):
            if shutil.which(tool):
                os.symlink(shutil.which(tool), f"{self.bin}/{tool}")

    def method(self, **env):
        self.lifecycle(f"choose_compression {self.tree}; printf %s $METHOD > {self.dir}/method", **env)
        return self.read(f"{self.dir}/method")

    def test_chooses_a_method(self):
        for wanted, method in (("", "gzip"), ("gzip", "gzip"), ("odd", "gzip"), ("none", "none"), ("skip", "skip"),
                               ("zstd", "zstd"), ("squashfs", "squashfs"), ("auto", "none")):
            self.assertEqual(self.method(OPEN_RUNTIMES_BUILD_COMPRESSION=wanted), method)
        self.assertEqual(self.method(), "gzip")
        with open(f"{self.tree}/large", "wb") as file:
            file.write(os.urandom(6 << 20))
        self.assertEqual(self.method(OPEN_RUNTIMES_BUILD_COMPRESSION="auto"), "gzip")

    def test_every_archive_comes_back_whatever_its_name(self):
        methods = ["none", "gzip"]
        methods += ["zstd"] if shutil.which("zstd") else []
        methods += ["squashfs"] if shutil.which("mksquashfs") else []
        for method in methods:
            with self.subTest(method):
                self.lifecycle(f"pack {method} {self.tree} {self.dir}/out")
                archive = "code.sqfs" if method == "squashfs" else "code.tar.gz"
                self.assertEqual(os.listdir(f"{self.dir}/out"), [archive])
                back = f"{self.dir}/back-{method}"
                os.mkdir(back)
                os.rename(f"{self.dir}/out/{archive}", f"{self.dir}/any-name")
                self.lifecycle(f"extract {self.dir}/any-name {back} > /dev/null")
                self.assertEqual(sorted(os.listdir(back)), [".hidden", "a"])
                self.assertEqual(self.read(f"{back}/a/b.txt"), "text")

    def test_takes_the_archive_that_the_host_names_where_no_other_is(self):
        for place in ("named", "own"):
            os.makedirs(f"{self.dir}/{place}")
            self.write(f"{self.tree}/a/b.txt", place)
            self.lifecycle(f"pack gzip {self.tree} {self.dir}/{place}")
        for code, expected in (("nothing", "named"), ("own", "own")):
            back = f"{self.dir}/back-{code}"
            script = f"CODE_DIR={self.dir}/{code}; FUNCTION_DIR={back}; extract_code $EPOCHREALTIME > /dev/null"
            self.lifecycle(script, OPEN_RUNTIMES_CODE_PATH=f"{self.dir}/named/code.tar.gz")
            self.assertEqual(self.read(f"{back}/a/b.txt"), expected)

    def test_skips_the_archive(self):
        self.lifecycle(f"pack skip {self.tree} {self.dir}/out")
        self.assertTrue({".extracted", ".hidden", "a"} <= set(os.listdir(f"{self.dir}/out")))

    def test_links_a_tree_that_is_extracted_already(self):
        self.write(f"{self.tree}/.extracted", "")
        self.write(f"{self.dir}/back/old")
        self.lifecycle(f"link_tree {self.tree} {self.dir}/back")
        self.assertEqual(sorted(os.listdir(f"{self.dir}/back")), [".hidden", "a"])
        self.assertEqual(self.read(f"{self.dir}/back/a/b.txt"), "text")

    def test_leaves_code_alone_that_the_host_has_mounted(self):
        self.write(f"{self.dir}/mounted/.open-runtimes", "A=1")
        places = f"SERVER_DIR=$PWD; CODE_DIR={self.tree}; FUNCTION_DIR={self.dir}/mounted; TELEMETRY_DIR={self.dir}"
        script = f"{places}; {{ source helpers/before-start.sh; echo A=$A; }} > {self.dir}/said"
        self.lifecycle(script, OPEN_RUNTIMES_CODE_MOUNTED="true")
        said = self.read(f"{self.dir}/said")
        self.assertIn("already extracted", said)
        self.assertIn("A=1", said)
        self.assertEqual(os.listdir(f"{self.dir}/mounted"), [".open-runtimes"])

    def test_reads_metadata_and_never_executes_it(self):
        self.write(f"{self.dir}/meta", f"A=1 2\nB='quoted'\nC=$(touch {self.dir}/executed)\nno line\nD=x=y\n1BAD=z\nE=last")
        self.lifecycle(f"export_metadata {self.dir}/meta; printf '%s|' \"$A\" \"$B\" \"$C\" \"$D\" \"$E\" > {self.dir}/seen")
        self.assertEqual(self.read(f"{self.dir}/seen"), f"1 2|quoted|$(touch {self.dir}/executed)|x=y|last|")
        self.assertFalse(os.path.exists(f"{self.dir}/executed"))


if __name__ == "__main__":
    unittest.main()
