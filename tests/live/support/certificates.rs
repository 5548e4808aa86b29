//! Certificates of an authority of the test, and servers that ask for them.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use headwater::commands::demo::{Cluster, StopMode};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use super::parent;

/// Certificates of one authority: a server's for `localhost`, a client's for the role `replicator`.
pub struct Certificates {
    dir: PathBuf,
    pub authority: CertifiedIssuer<'static, KeyPair>,
}

pub fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Certificates {
    pub fn new() -> Certificates {
        let dir = parent().join(format!("certificates-{:08x}", fastrand::u32(..)));
        std::fs::create_dir_all(&dir).unwrap();
        let authority = CertifiedIssuer::self_signed(authority_params(), KeyPair::generate().unwrap()).unwrap();
        std::fs::write(dir.join("root.crt"), authority.pem()).unwrap();
        let stranger = CertifiedIssuer::self_signed(authority_params(), KeyPair::generate().unwrap()).unwrap();
        std::fs::write(dir.join("stranger.crt"), stranger.pem()).unwrap();
        let certificates = Certificates { dir, authority };
        for (file, name) in [("server", "localhost"), ("client", "replicator")] {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            certificates.write(file, &params.signed_by(&key, &certificates.authority).unwrap(), &key);
        }
        certificates
    }

    /// Writes a certificate and its key.
    pub fn write(&self, file: &str, certificate: &rcgen::Certificate, key: &KeyPair) {
        std::fs::write(self.dir.join(format!("{file}.crt")), certificate.pem()).unwrap();
        let path = self.dir.join(format!("{file}.key"));
        std::fs::write(&path, key.serialize_pem()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub fn path(&self, file: &str) -> String {
        self.dir.join(file).display().to_string()
    }

    /// Copies the server's files to where the server may read them.
    pub fn install(&self, cluster: &Cluster) {
        for file in ["server.crt", "server.key", "root.crt"] {
            self.copy(cluster, file, file);
        }
    }

    /// Copies one file to where the server may read it.
    pub fn copy(&self, cluster: &Cluster, from: &str, name: &str) {
        let data = cluster.dir().join("data");
        let to = data.join(name);
        std::fs::copy(self.dir.join(from), &to).unwrap();
        give_to_owner_of(&data, &to);
        std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
}

pub fn give_to_owner_of(of: &Path, path: &Path) {
    use std::os::unix::fs::MetadataExt;
    let owner = std::fs::metadata(of).unwrap();
    // Fails for an ordinary user, who owns both already.
    let _ = std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid()));
}

/// Restarts a cluster with these lines before its own in pg_hba.conf.
pub async fn with_hba(cluster: &mut Cluster, lines: &str) {
    let path = cluster.dir().join("data/pg_hba.conf");
    let own = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{lines}\n{own}")).unwrap();
    cluster.stop(StopMode::Fast).await.unwrap();
    cluster.start().await.unwrap();
}
