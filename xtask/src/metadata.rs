//! What `cargo metadata` says about the workspace, cut down to what the verbs ask.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::run;

pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) packages: Vec<Package>,
}

pub(crate) struct Package {
    pub(crate) name: String,
    /// The folder, relative to the root.
    pub(crate) dir: PathBuf,
    /// Whether it may be published.
    pub(crate) public: bool,
    pub(crate) dependencies: Vec<Dependency>,
    pub(crate) features: Vec<String>,
    /// What `default` turns on.
    pub(crate) default_features: Vec<String>,
    pub(crate) has_lib: bool,
    /// The integration test `loom`, if there is one, with the features that it requires.
    pub(crate) loom: Option<Vec<String>>,
}

pub(crate) struct Dependency {
    pub(crate) name: String,
    pub(crate) dev: bool,
    /// Whether it is a path, that is, a neighbour.
    pub(crate) local: bool,
    /// The version that it asks for; `*` when the manifest gives none.
    pub(crate) version: String,
}

impl Workspace {
    pub(crate) fn load() -> Result<Self> {
        // At run time cargo says where the manifest is; the compiled-in folder may have moved.
        let own = std::env::var("CARGO_MANIFEST_DIR")
            .unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").into());
        let root = Path::new(&own)
            .parent()
            .context("xtask sits in no folder")?;
        let json =
            run::stdout_of(run::cargo(root).args(["metadata", "--format-version=1", "--no-deps"]))?;
        Self::parse(&json).context("`cargo metadata` speaks another dialect")
    }

    fn parse(json: &str) -> Result<Self> {
        let json: Value = serde_json::from_str(json)?;
        let root = PathBuf::from(text(&json["workspace_root"]));
        let mut packages: Vec<_> = list(&json["packages"])
            .map(|package| Package::parse(package, &root))
            .collect();
        packages.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self {
            target: PathBuf::from(text(&json["target_directory"])),
            root,
            packages,
        })
    }

    pub(crate) fn package(&self, name: &str) -> Option<&Package> {
        self.packages.iter().find(|package| package.name == name)
    }

    /// The crates that have models.
    pub(crate) fn with_models(&self) -> impl Iterator<Item = &Package> {
        self.packages
            .iter()
            .filter(|package| package.loom.is_some())
    }
}

impl Package {
    /// What chooses the package as its models need it.
    pub(crate) fn loom_args(&self) -> Vec<String> {
        let mut args = vec![
            "-p".into(),
            self.name.clone(),
            "--no-default-features".into(),
        ];
        if let Some(features) = self.loom.as_ref().filter(|features| !features.is_empty()) {
            args.extend(["--features".into(), features.join(",")]);
        }
        args
    }

    fn parse(json: &Value, root: &Path) -> Self {
        let manifest = PathBuf::from(text(&json["manifest_path"]));
        let dir = manifest.parent().unwrap_or(&manifest);
        let targets = || list(&json["targets"]);
        let is = |target: &Value, kind: &str| list(&target["kind"]).any(|has| has == kind);
        Self {
            name: text(&json["name"]),
            dir: dir.strip_prefix(root).unwrap_or(dir).to_owned(),
            // `publish = false` is an empty list of registries; what is packaged and not published has a word of its own.
            public: json["publish"]
                .as_array()
                .is_none_or(|registries| !registries.is_empty())
                && json["metadata"]["lockkit"]["published"] != false,
            dependencies: list(&json["dependencies"]).map(Dependency::parse).collect(),
            features: json["features"]
                .as_object()
                .map(|all| all.keys().cloned().collect())
                .unwrap_or_default(),
            default_features: list(&json["features"]["default"]).map(text).collect(),
            has_lib: targets().any(|target| is(target, "lib") || is(target, "proc-macro")),
            loom: targets()
                .find(|target| is(target, "test") && target["name"] == "loom")
                .map(|target| list(&target["required-features"]).map(text).collect()),
        }
    }
}

impl Dependency {
    fn parse(json: &Value) -> Self {
        Self {
            name: text(&json["name"]),
            dev: json["kind"] == "dev",
            local: json["path"].is_string(),
            version: text(&json["req"]),
        }
    }
}

fn list(json: &Value) -> impl Iterator<Item = &Value> {
    json.as_array().into_iter().flatten()
}

fn text(json: &Value) -> String {
    json.as_str().unwrap_or_default().to_owned()
}
