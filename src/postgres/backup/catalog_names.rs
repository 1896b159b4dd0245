//! The list of names that goes with a backup: asked of every database that lets us in.

use crate::postgres::archive::name_list::{DatabaseNames, NAME_LIST_FORMAT, NameList};
use crate::postgres::sql::{self, SqlSession};
use crate::postgres::wire::conninfo::Conninfo;

/// What the server's databases and tables are called now; `None`, with a warning, where it does not say. A backup
/// without it is as good as any.
pub(super) async fn collect_names(server: &Conninfo, major: u32) -> Option<NameList> {
    match database_names(server).await {
        Ok(databases) => Some(NameList { format: NAME_LIST_FORMAT, major_version: major, databases }),
        Err(error) => {
            tracing::warn!(%error, "the backup goes without names; walkeep log will show OIDs where the WAL has no \
                name");
            None
        }
    }
}

async fn database_names(server: &Conninfo) -> Result<Vec<DatabaseNames>, sql::SqlError> {
    let first = SqlSession::connect(server).await?;
    let mut found = Vec::new();
    for (row, open) in first.databases().await? {
        let mut database = DatabaseNames { row, schemas: Vec::new(), relations: Vec::new() };
        if open {
            let name = Some(database.row.row.name.clone());
            match add_relation_names(&first, &Conninfo { dbname: name, ..server.clone() }, &mut database).await {
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!(database = database.row.row.name, %error, "the names in this database are not \
                        listed");
                }
            }
        }
        found.push(database);
    }
    Ok(found)
}

async fn add_relation_names(
    first: &SqlSession,
    server: &Conninfo,
    database: &mut DatabaseNames,
) -> Result<(), sql::SqlError> {
    let sql = first.connect_beside(server).await?;
    database.schemas = sql.schemas().await?;
    database.relations = sql.relations().await?;
    Ok(())
}
