//! Models of the Hugging Face hub as folders in its cache. This module knows where the cache is and whether the network may be
//! used, and downloads files once.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use hf_hub::{
    Cache, CacheRepo,
    api::sync::{ApiBuilder, ApiRepo},
};

use crate::{Error, Result};

/// Whether `model` can be an id of the hub, `owner/name`, which no path that exists has been found for.
pub fn is_id(model: &str) -> bool {
    const FILES: [&str; 5] = [".pt", ".pth", ".safetensors", ".ckpt", ".bin"];
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    let is_name = |part: &str| !part.is_empty() && part.chars().all(allowed);
    let parts: Vec<&str> = model.split('/').collect();
    parts.len() == 2
        && parts.iter().all(|part| is_name(part))
        && !model.starts_with(['.', '~'])
        && !FILES.iter().any(|end| model.ends_with(end))
}

/// What the environment says of the hub, read as huggingface_hub reads it.
#[derive(Debug, Clone)]
struct Settings {
    cache: PathBuf,
    home: PathBuf,
    /// The variable that forbids the network, with its value.
    offline: Option<String>,
    endpoint: Option<String>,
}

impl Settings {
    fn of(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let given = |name: &str| variable(name).filter(|path| !path.is_empty()).map(PathBuf::from);
        let own = given("HOME").or_else(|| given("USERPROFILE"));
        let path = |name: &str| {
            let given = given(name)?;
            Some(given.strip_prefix("~").ok().and_then(|rest| Some(own.as_ref()?.join(rest))).unwrap_or(given))
        };
        let user = || {
            let cache = path("XDG_CACHE_HOME").or_else(|| Some(own.as_ref()?.join(".cache")));
            cache.map(|cache| cache.join("huggingface"))
        };
        let home = path("HF_HOME").or_else(user);
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let cache = cache.or_else(|| Some(home.as_ref()?.join("hub"))).ok_or_else(|| {
            Error::data("no home folder, so no place for the hub's cache").hint("HF_HOME or HF_HUB_CACHE names one")
        })?;
        let offline = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].into_iter().find_map(|name| {
            let value = variable(name)?.into_string().ok()?;
            ["1", "ON", "YES", "TRUE"].contains(&value.to_ascii_uppercase().as_str()).then(|| format!("{name}={value}"))
        });
        let endpoint = variable("HF_ENDPOINT").and_then(|url| url.into_string().ok()).filter(|url| !url.is_empty());
        Ok(Self { home: home.unwrap_or_else(|| cache.clone()), cache, offline, endpoint })
    }
}

/// A model repository, through the cache.
pub struct Repository {
    id: String,
    settings: Settings,
    cache: CacheRepo,
}

impl Repository {
    /// Names the repository of model `id`; nothing is looked for yet.
    ///
    /// # Errors
    /// No place for a cache.
    pub fn new(id: &str) -> Result<Self> {
        Ok(Self::with(id, Settings::of(|name| std::env::var_os(name))?))
    }

    fn with(id: &str, settings: Settings) -> Self {
        let cache = Cache::new(settings.cache.clone()).model(id.to_owned());
        Self { id: id.to_owned(), settings, cache }
    }

    /// The folder of the cached version, if it has `name`.
    pub fn cached(&self, name: &str) -> Option<PathBuf> {
        self.cache.get(name).and_then(|path| folder_of(&path, name))
    }

    /// The repository on the network, and the names of its files.
    ///
    /// # Errors
    /// The network is forbidden, or the hub does not answer or does not know the model.
    pub fn online(&self) -> Result<(Online, Vec<String>)> {
        if let Some(variable) = &self.settings.offline {
            let cache = self.settings.cache.display();
            return Err(Error::data(format!(
                "{}: not complete in the hub's cache {cache}, and {variable} forbids the network",
                self.id
            ))
            .hint(format!(
                "`hf download {}` where there is a network fills the cache; or pass a local folder",
                self.id
            )));
        }
        let failed = |error: hf_hub::api::sync::ApiError| failed(&self.id, error);
        let token = std::env::var("HF_TOKEN").ok().filter(|token| !token.is_empty());
        let token = token.or_else(|| {
            let written = fs_err::read_to_string(self.settings.home.join("token")).ok()?;
            Some(written.trim().to_owned()).filter(|token| !token.is_empty())
        });
        let mut builder =
            ApiBuilder::from_cache(Cache::new(self.settings.cache.clone())).with_progress(false).with_token(token);
        if let Some(endpoint) = &self.settings.endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        let repository = builder.build().map_err(failed)?.model(self.id.clone());
        let files = repository.info().map_err(failed)?.siblings.into_iter().map(|file| file.rfilename).collect();
        Ok((Online { id: self.id.clone(), repository }, files))
    }
}

/// A repository that answers.
pub struct Online {
    id: String,
    repository: ApiRepo,
}

impl Online {
    /// Downloads file `name`, if it is not in the cache yet; gives the folder of this version.
    ///
    /// # Errors
    /// The hub does not give it, or the disk is full.
    pub fn get(&self, name: &str) -> Result<PathBuf> {
        let path = self.repository.get(name).map_err(|error| failed(&self.id, error))?;
        folder_of(&path, name).ok_or_else(|| Error::data(format!("{}: the hub's cache has no folder for it", self.id)))
    }
}

fn failed(id: &str, error: hf_hub::api::sync::ApiError) -> Error {
    Error::data(format!("{id}: not a local file or folder, and the hub did not give it"))
        .caused_by(error)
        .hint("offline? download the folder elsewhere and pass its path; nothing needs a hub id")
}

/// The folder that file `name`, which may have folders of its own, lies in at `path`.
fn folder_of(path: &Path, name: &str) -> Option<PathBuf> {
    path.ancestors().nth(name.split('/').count()).map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Settings {
        let find = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).into());
        Settings::of(find).unwrap()
    }

    #[test]
    fn the_cache_is_where_huggingface_hub_has_it() {
        for (variables, wanted) in [
            (&[("HOME", "/h")][..], "/h/.cache/huggingface/hub"),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("HOME", "/h"), ("HF_HOME", "/hf")], "/hf/hub"),
            (&[("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
            (&[("HF_HUB_CACHE", "/new"), ("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HOME", "/hf")], "/new"),
            (&[("HOME", "/h"), ("HF_HOME", "~/hf")], "/h/hf/hub"),
            (&[("HF_HUB_CACHE", ""), ("HF_HOME", "/hf")], "/hf/hub"),
        ] {
            assert_eq!(settings(variables).cache, Path::new(wanted), "{variables:?}");
        }
        assert!(Settings::of(|_| None).is_err());
    }

    #[test]
    fn nothing_is_asked_of_the_network_where_it_is_forbidden() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_str().unwrap();
        let snapshot = folder.path().join("models--someone--clip/snapshots/0123");
        fs_err::create_dir_all(snapshot.join("unet")).unwrap();
        fs_err::create_dir_all(folder.path().join("models--someone--clip/refs")).unwrap();
        fs_err::write(folder.path().join("models--someone--clip/refs/main"), "0123").unwrap();
        fs_err::write(snapshot.join("config.json"), "{}").unwrap();
        fs_err::write(snapshot.join("unet/config.json"), "{}").unwrap();
        for variable in ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"] {
            let repository = Repository::with("someone/clip", settings(&[("HF_HUB_CACHE", root), (variable, "1")]));
            assert_eq!(repository.cached("config.json").as_deref(), Some(&*snapshot));
            assert_eq!(repository.cached("unet/config.json").as_deref(), Some(&*snapshot));
            assert_eq!(repository.cached("model.safetensors"), None);
            let Err(error) = repository.online() else { panic!("the network was used") };
            assert!(error.to_string().contains(&format!("someone/clip: not complete in the hub's cache {root}")));
            assert!(error.to_string().ends_with(&format!("{variable}=1 forbids the network")), "{error}");
            assert!(error.hint_text().unwrap().contains("hf download someone/clip"));
        }
        assert!(settings(&[("HOME", "/h"), ("HF_HUB_OFFLINE", "0")]).offline.is_none());
        assert!(settings(&[("HOME", "/h"), ("HF_HUB_OFFLINE", "true")]).offline.is_some());
    }

    #[test]
    fn ids_look_like_owner_and_name() {
        for id in ["openai/clip-vit-large-patch14", "a/b", "stable-diffusion-v1-5/stable_diffusion.v1"] {
            assert!(is_id(id), "{id}");
        }
        for path in ["a", "a/b/c", "./a", "/a", "~/a", "a/", "a/b.safetensors", "a b/c", "https://x", "a/b.pt"] {
            assert!(!is_id(path), "{path}");
        }
    }
}
