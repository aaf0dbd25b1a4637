// Sends mail with nodemailer: nodemailer_client.js HOST PORT.
'use strict';
const nodemailer = require('nodemailer');
const [host, port] = process.argv.slice(2);

async function main() {
  // A pool: several messages over few connections.
  const transport = nodemailer.createTransport({
    host, port: Number(port), secure: false, ignoreTLS: true, name: 'client.test',
    pool: true, maxConnections: 2, connectionTimeout: 20000,
  });
  await transport.verify();
  const sent = [];
  for (let number = 0; number < 10; number++) {
    sent.push(transport.sendMail({
      from: 'Sender <sender@client.test>', to: 'pool@box.test', subject: `number ${number}`,
      text: `.leading dot\nGrüße ${number}\n`,
      attachments: [{ filename: 'all.bin', content: Buffer.alloc(100000, number) }],
    }));
  }
  // A message as it stands.
  sent.push(transport.sendMail({
    envelope: { from: 'sender@client.test', to: ['raw@box.test'], use8BitMime: true },
    raw: Buffer.from('Subject: raw\r\n\r\n..two dots\r\n.\r\nGrüße\r\n'),
  }));
  sent.push(transport.sendMail({
    from: 'sender@client.test', to: 'dsn@box.test', subject: 'dsn', text: 'text',
    dsn: { id: 'id-1', return: 'headers', notify: ['failure', 'delay'], recipient: 'dsn@box.test' },
  }));
  for (const info of await Promise.all(sent)) {
    if (!/^250 2\.0\.0 Ok: queued as \w{13} \(fsync\)/.test(info.response)) {
      throw new Error(`unexpected reply: ${info.response}`);
    }
  }
  transport.close();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
