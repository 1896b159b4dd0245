//! The list of names that goes with a backup: asked of every database that lets us in.

use crate::postgres::archive::name_list::{DatabaseNames, FORMAT, NameList};
use crate::postgres::sql::{self, SqlSession};
use crate::postgres::wire::conninfo::Conninfo;

/// What the server's databases and tables are called now; `None`, with a warning, where it does not say. A backup without it is as good as any.
pub(super) async fn list(server: &Conninfo, major: u32) -> Option<NameList> {
    match databases(server).await {
        Ok(databases) => Some(NameList { format: FORMAT, major_version: major, databases }),
        Err(error) => {
            tracing::warn!(%error, "the backup goes without names; walkeep log will show OIDs where the WAL has no name");
            None
        }
    }
}

async fn databases(server: &Conninfo) -> Result<Vec<DatabaseNames>, sql::SqlError> {
    let first = SqlSession::connect(server).await?;
    let mut found = Vec::new();
    for (row, open) in first.databases().await? {
        let mut database = DatabaseNames { row, schemas: Vec::new(), relations: Vec::new() };
        if open {
            let name = Some(database.row.row.name.clone());
            match inside(&Conninfo { dbname: name, ..server.clone() }, &mut database).await {
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!(database = database.row.row.name, %error, "the names in this database are not listed");
                }
            }
        }
        found.push(database);
    }
    Ok(found)
}

async fn inside(server: &Conninfo, database: &mut DatabaseNames) -> Result<(), sql::SqlError> {
    let sql = SqlSession::connect(server).await?;
    database.schemas = sql.schemas().await?;
    database.relations = sql.relations().await?;
    Ok(())
}
